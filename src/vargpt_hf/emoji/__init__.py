"""vargpt-emoji: the data, the sentences and the judge of a model that draws things by name, in three looks."""
