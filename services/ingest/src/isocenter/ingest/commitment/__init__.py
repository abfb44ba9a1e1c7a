"""Storage commitment (PS3.4 annex J, PS3.18 chapter 13), answered from what the store gives back."""
