"""What the report says: graphs and arrays in, plain data out."""
