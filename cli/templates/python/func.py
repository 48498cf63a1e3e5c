"""The function {{name}}: says hello to the name in the call's body."""

import io
import json
import logging

from fdk import response


def handler(ctx, data: io.BytesIO = None):
    name = "World"
    try:
        name = json.loads(data.getvalue()).get("name", name)
    except (AttributeError, ValueError):
        logging.getLogger().info("the body is not a JSON object")

    # What a function logs is the log of the call: `kiln logs APP {{name}}` shows it.
    logging.getLogger().info("saying hello to %s", name)
    return response.Response(
        ctx,
        response_data=json.dumps({"message": f"Hello {name}"}),
        headers={"Content-Type": "application/json"},
    )
