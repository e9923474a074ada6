"""Training: a run that a kill cannot lose, and the figures of its predictions.

finetune    the whole run: what `nlzoo finetune` and `nlzoo.finetune` call
recipe      optimiser, rates, BatchNorm, loss and memory of a recipe
engine      one process or many: the accelerate boundary
state       checkpoints of a run, and its lock
evaluate    predictions and features of videos; metrics: their figures and intervals
probe       a linear classifier on frozen features, the baseline to beat
"""
