"""A recorder that works without a GPU."""


class CallRecorder:
    """Does the work again each time: everything but the graph, on any device."""

    def refusal(self, x, inputs, convs):
        return None

    def record(self, work, device):
        return work
