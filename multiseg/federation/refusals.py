"""Codes with which the gate refuses a site, beside Flower's own; its node prints them as "[code: 2901]"."""

UNKNOWN_KEY, WRONG_CLOCK = 2901, 2902
