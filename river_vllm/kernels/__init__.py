"""W4A16 products behind one interface, and the choice among them."""
