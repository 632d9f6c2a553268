"""The one exception whose message is meant for the person at the keyboard."""


class CourseError(Exception):
    """Something a user can put right: the message says what is wrong, where, and what to do next."""
