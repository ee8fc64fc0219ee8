"""Which tensor gets how much: what each candidate costs and loses, and the choice among them."""
