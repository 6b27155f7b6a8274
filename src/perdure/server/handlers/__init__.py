"""What the operations do, one module for each noun; `HANDLERS` has all of them."""
