"""Each unit of the quantization path by itself: no model, no corpus, a second in all. Runs first."""


def test_probe(probe, judge_probe):
    judge_probe(probe)
