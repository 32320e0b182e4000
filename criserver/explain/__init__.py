"""`criserver explain`: what was done to an object, when, how it went, and what it waits for now.

record.py   operations as JSON values
history.py  the last operations of each object, in the database
explainer.py  the answer to a person who names a pod, a container or an image
"""
