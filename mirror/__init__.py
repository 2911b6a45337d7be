"""Carry Deckhouse Kubernetes Platform images across an air gap and prove that they arrived."""
