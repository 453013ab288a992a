"""Reports: the dataclasses (`schema`), and JSON, terminal, HTML and JUnit made of them."""
