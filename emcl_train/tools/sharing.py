"""How an encoder is given to others: a folder, or an entry of the hub, as huggingface_hub's own mixin has it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from emcl_train.tools.publish import UNKNOWN, Published, write_published


class Shared:
    """`save_pretrained` and `push_to_hub`, with the names and arguments of `huggingface_hub.PyTorchModelHubMixin`."""

    def published(self) -> Published:
        """What a published folder of it is made of."""
        raise NotImplementedError

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, licence: str = UNKNOWN
    ) -> None:
        """Write the model into a new folder, as `emcl-train publish` does, without a network.

        Args:
            save_directory: to write; it must not exist.
            repo_id: the entry of the hub that the card names; None: the folder's name.
            licence: of the weights, as the hub names it, such as "mit".

        Raises:
            UserError: the folder exists, or the model is of a run that is not finished.
        """
        write_published(self.published(), Path(save_directory).expanduser(), licence, repo_id)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push model using huggingface_hub.",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        licence: str = UNKNOWN,
    ) -> str:
        """Put the model on the Hugging Face hub, into an entry that is made if it is not there.

        Args:
            repo_id: ORGANISATION/NAME.
            commit_message: what the hub's history says.
            private: whether a new entry is private; None: as the organisation has it.
            token: None: that of `hf auth login`.
            branch: None: main.
            create_pr: whether to propose the files, and leave the branch as it is.
            licence: of the weights, as the hub names it.

        Returns:
            The address of the commit.

        Raises:
            UserError: the model is of a run that is not finished.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with TemporaryDirectory() as parent:
            folder = Path(parent) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder, repo_id=repo_id, licence=licence)
            made = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=made,
                repo_type="model",
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            )
        return str(commit)
