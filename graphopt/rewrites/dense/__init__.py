"""A classifier made fully convolutional: from one answer a picture to a map of answers."""
