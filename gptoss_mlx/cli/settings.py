"""`config` and `completion`: what a person need not type."""

from __future__ import annotations

import click

from .completion import SHELLS, complete_commands, script


@click.command(epilog="Example: gptoss-mlx config chat")
@click.argument("command", required=False, shell_complete=complete_commands)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def config(context: click.Context, command: str | None, as_json: bool) -> None:
    """Print the settings of every command, or of COMMAND, and where each comes from.

    The config file is ~/.config/gptoss-mlx/config.toml, or what GPTOSS_MLX_CONFIG names.
    """
    from . import config_file

    root = context.find_root()
    if command not in (None, *root.command.commands):
        raise click.UsageError(f"there is no command {command!r}")
    for problem in context.obj.problems:
        click.echo(f"error: {problem}", err=True)
    settings = config_file.settings(root)
    chosen = [each for each in settings if command in (None, each.command.split()[0])]
    show = config_file.as_json if as_json else config_file.as_text
    click.echo(show(context.obj, chosen))


@click.command(epilog="Example: gptoss-mlx completion zsh")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options and models at the press of Tab.

    \b
    bash  echo 'eval "$(gptoss-mlx completion bash)"' >> ~/.bashrc
    zsh   echo 'autoload -U compinit; compinit; eval "$(gptoss-mlx completion zsh)"' >> ~/.zshrc
    fish  gptoss-mlx completion fish > ~/.config/fish/completions/gptoss-mlx.fish
    """
    root = context.find_root()
    click.echo(script(root.command, root.info_name, shell))


COMMANDS = (config, completion)
