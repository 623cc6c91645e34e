"""Codes with which the gate refuses a site, beside Flower's own; its node prints them as "[code: 2901]"."""

UNKNOWN_KEY, WRONG_CLOCK = 2901, 2902

MAY_HAVE_ACTED = "may_have_acted"
"""In the body of a 503: whether the SuperLink may have done what it was asked. A task it handed out is then lost."""
