"""Two checkouts take turns."""

from pathlib import Path

from benchmarks import pairs


def test_a_checkout_is_as_fast_as_itself_and_computes_the_same(monkeypatch, capsys):
    own = str(Path(pairs.__file__).parents[1])
    monkeypatch.setattr("sys.argv", ["pairs", own, "--pairs", "2", "--fraction", "0.002"])
    pairs.main()
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["gradient"][-3:] == ["1.000", "pairs", "1.000"]
    assert 0.05 < float(rows["processor"][-1]) < 20
