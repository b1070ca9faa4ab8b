"""What the integration tests and the benchmark stand on.

The harness shares no code with the product: it has its own protobuf codec, ttrpc client and leak
check, so that a mistake made in the product cannot hide behind the same mistake in its test.
"""
