"""Training: a run that a kill cannot lose, and the figures of its predictions.

finetune    the whole run: what `nlzoo finetune` and `nlzoo.finetune` call
options     what the call can be told; plan: what it fills in, and why; dry_run: what a run would take
train       the run loop; step: one optimiser step; callbacks: what a run says, as data
run_folder  what a run writes and reads back; provenance: which videos trained a model
recipe      optimiser, rates, BatchNorm, loss and memory of a recipe
engine      one process or many: the accelerate boundary
state       checkpoints of a run, and its lock
evaluate    predictions and features of videos; metrics: their figures and intervals
probe       a linear classifier on frozen features, the baseline to beat; known_features: those of a file
"""
