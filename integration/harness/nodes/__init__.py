"""What a test works with: a node, its containers and pods, and holding them in mid-operation."""
