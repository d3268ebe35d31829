# SPDX-License-Identifier: Apache-2.0
"""What holds while the agent runs, of that which may change meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from otelbpf.agent.agent import Agent
from otelbpf.agent.config import Config
from otelbpf.kernel.loader import Programs
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Sampler
from otelbpf.traces.description import Description


def routes_of(config: Config) -> Routes:
    """How paths are called: the routes that have a time of their own are given, too."""
    templates = (*config.routes, *(route for route, _ in config.slow.by_route))
    return Routes(templates, config.found_routes)


def sampler_of(config: Config, environment: Mapping[str, str]) -> Sampler:
    """Which requests become spans."""
    sampler = config.sampler or Sampler.from_environment(environment)
    # Whoever asks for the slow ones wants to see what goes wrong.
    return replace(
        sampler,
        keep_errors=sampler.keep_errors or bool(config.slow),
        keep_4xx=config.keep_4xx,
    )


class InForce:
    """The configuration that holds, until another one does.

    Args:
        routes: of this configuration; `description` and the agent's series go by them.
    """

    def __init__(
        self,
        config: Config,
        environment: Mapping[str, str],
        routes: Routes,
        description: Description,
        programs: Programs,
        agent: Agent,
    ) -> None:
        self._config = config
        self._environment = environment
        self._routes = routes
        self._description = description
        self._programs = programs
        self._agent = agent

    def become(self, config: Config) -> None:
        """This holds from now on, of requests that end and of spans that are not sent yet.

        Nothing is counted twice or missing for it.

        Args:
            config: another one only in what agent.config.CHANGEABLE names.
        """
        before, self._config = self._config, config
        # Others of the same kind would count anew how many routes were found.
        if _names(config) != _names(before):
            self._routes = routes_of(config)
        self._description.become(self._routes, config.capture)
        self._programs.set_sampler(sampler_of(config, self._environment).settings())
        self._agent.become(config, self._routes, time.monotonic())


def _names(config: Config) -> tuple[object, ...]:
    return config.routes, config.slow.by_route, config.found_routes
