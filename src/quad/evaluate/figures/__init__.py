"""The figures: metrics, features, paired quality, adapter effect, laws."""
