"""Evaluation: tasks and their scores, statistics, what was forgotten, and the job that runs them.

Owns what counts as right; knows neither training nor how the evaluation sets were made.
"""
