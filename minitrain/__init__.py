"""minitrain: parallel pretraining of transformers, every gradient and every collective written out."""
