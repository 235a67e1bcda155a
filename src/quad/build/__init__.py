"""A build, stage by stage and resumable: the only room where quantization and compilation meet."""
