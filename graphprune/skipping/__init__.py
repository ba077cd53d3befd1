"""Rules by which blocks do not run on inputs that do not need them, fitted to data in closed form."""
