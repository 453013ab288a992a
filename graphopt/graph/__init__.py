"""Models: reading and writing them, typed views of their operators, shapes, dataflow, editing."""
