"""What an aten graph is made of: the one table of operators, questions to ask a graph, the walk node by node. It knows torch only."""
