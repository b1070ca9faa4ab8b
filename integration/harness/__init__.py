"""What the integration tests and the benchmark stand on.

The harness shares no code with the product: it has its own protobuf codec, ttrpc client and leak
check, so that a mistake made in the product cannot hide behind the same mistake in its test.

From the ground up, each importing only what stands before it: ``base`` (waiting, where programs
lie), ``host`` (containerd, docker, images, what is left behind), ``clients`` (the APIs),
``nodes`` (what a test works with), ``figures`` (benchmarks) and ``soak``.
"""
