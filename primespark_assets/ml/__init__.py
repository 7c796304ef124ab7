"""The eight stages of the digit reader and what starts them."""
