"""Every picture that this project draws, in one style. matplotlib is imported when one is drawn."""
