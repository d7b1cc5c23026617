"""GPTQ: recipe, grid, Hessian, solver and the resumable job."""
