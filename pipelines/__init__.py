"""What spans both stages: data sets, decoding methods, metrics, reports and the demo."""
