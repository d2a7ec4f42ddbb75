"""The pages, in the order of the navigation."""

from glowserve.ui.pages.interpolate import INTERPOLATE
from glowserve.ui.pages.sample import SAMPLE
from glowserve.ui.pages.score import SCORE

PAGES = (SCORE, SAMPLE, INTERPOLATE)
"""Every page; the first is where the visitor arrives."""
