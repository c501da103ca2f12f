"""The OpenAPI document of every route.

Bodies and the daemon's own answers are described by the types that check and write them, statuses by the errors that
have them, and the routes themselves by the application. What only words can say stands here, in one table for each
dialect.
"""
