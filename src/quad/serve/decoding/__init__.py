"""Pictures that clients send are decoded in processes of their own, which are ended where one takes too long or too much."""
