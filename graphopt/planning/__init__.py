"""What to choose under a budget: menus with prices, and the search."""
