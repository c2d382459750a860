"""What a training job needs before it is started: memory, communication, time, layouts, and a dry run of one rank."""
