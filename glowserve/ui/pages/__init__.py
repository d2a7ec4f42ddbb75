"""The pages, in the order of the navigation."""

from glowserve.ui.pages.attributes import ATTRIBUTES
from glowserve.ui.pages.interpolate import INTERPOLATE
from glowserve.ui.pages.sample import SAMPLE
from glowserve.ui.pages.score import SCORE

PAGES = (SCORE, SAMPLE, INTERPOLATE, ATTRIBUTES)
"""Every page; the first is where the visitor arrives."""
