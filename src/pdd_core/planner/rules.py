"""What the planner goes by, for one request and for arrays of them: shares below which a plan is not worth it."""

from pdd_core.refinement.guard import LEAST_TOKENS

LEAST_SAVED = 0.1
"""Of the tokens that the cloud would decode: a handoff expected to save less is not worth the device's work."""
LEAST_GAINED = 0.1
"""The same for a refined prompt, over the whole one: what is left out is a risk."""
LEAST_GAINED_BY_CELLS = 0.02
"""The same for cells, what their bytes cost taken off: nothing is left out, but the device has to unpack them."""
ENOUGH_SAVED = 0.5
"""A handoff that saves this share needs no refined prompt."""
RATIOS = (0.75, 0.5, 0.35, 0.25)
"""Shares of the prompt that are tried, beginning with the largest."""
LEAST_REFINED = LEAST_TOKENS + 1
"""Tokens of a handoff with a refined prompt, behind one, or with cells: the device goes on behind the last one
that it judges these by."""
IN_TIME = 1.2815515655446004
"""Standard deviations: the device alone begins in time with a chance of nine in ten."""
NEGLIGIBLE = 1e-6
"""Share of answers that stall: one token more is worth it where it takes the risk down to this."""
QOE_SLACK = 1e-9
