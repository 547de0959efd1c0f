"""One answer made by two engines: its legs, its display, and its refined prompt on the device."""
