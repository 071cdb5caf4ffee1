"""The colours of all pictures: those of Okabe and Ito, told apart by all eyes."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F", "#444444")
