"""Scripted demonstrators of RoboCasa tasks: they see the simulator's state and serve to make data, nothing else.

An expert is a function of the present state alone. It keeps no phase between env steps: where the gripper is says what
comes next. So it recovers from noise, and a demonstration can start anywhere.
"""
