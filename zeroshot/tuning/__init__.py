"""Choose among frozen answers: which method, on which prompts, for the labelled images at hand.

Functions of scores and labels that know no model; `tasks.tuning` gives them candidates.
"""
