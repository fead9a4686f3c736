"""What a user has, as what the rest works on: a model becomes a Program, data becomes batches of its inputs."""
