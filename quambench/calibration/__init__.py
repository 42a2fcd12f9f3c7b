"""Model + sequences + plans -> scales: one pass feeds every observer; sensitivity, Hessians, trained scales."""
