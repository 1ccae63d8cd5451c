"""Pictures of what the model sees and marks: the paper's qualitative panels and its Fig. 9."""
