"""Several models on the same data: trained or loaded, measured alike, and put into one table and one picture."""
