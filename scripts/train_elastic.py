"""Train in several processes, any of which may be killed at any moment; the run goes on where it was.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # without it a restart can hang (see `main`)
    torchrun --standalone --nproc-per-node 2 --max-restarts 3 scripts/train_elastic.py --run-dir runs/first

The same program as `train_ddp.py` plus checkpoints; the lines that differ are marked `# NEW`. When a process dies,
torchrun stops the others and starts all of them again; when everything dies, the same command goes on from the newest
complete checkpoint. With as many processes as before the final weights are bit for bit those of an undisturbed run.

The folder of a run holds `step-00000120/` (the two newest checkpoints: the tensors, written by
torch.distributed.checkpoint, and `manifest.json` with everything else and a checksum for each file), `*.partial` (being
written) and `*.refused` (damaged). Several machines need a folder that all of them see.
"""

import os

AGENT = os.getppid()  # NEW: torchrun's process, asked for before the slow imports, during which it may die

import argparse
import contextlib
import fcntl  # NEW
import hashlib
import io  # NEW
import json
import shutil  # NEW
import threading  # NEW
import time
from datetime import timedelta
from pathlib import Path
from typing import Any  # NEW

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp  # NEW
import torch.distributed.checkpoint.state_dict as dcp_state  # NEW
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler, TensorDataset

STATISTICS = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}  # mean and standard deviation of the pixels
# NEW: what decides about every step; a checkpoint of a run that had it otherwise is of no use
RECIPE = ("dataset", "limit", "limit_validation", "model", "dropout", "epochs", "batch_size", "lr", "seed", "dtype")


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--dataset", choices=[*STATISTICS, "synthetic"], default="mnist", help="synthetic: made in memory"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--limit", type=int, help="train on the first so many pictures")
    parser.add_argument("--limit-validation", type=int, help="validate on the first so many pictures")
    parser.add_argument("--model", choices=["mlp", "cnn"], default="mlp")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256, help="pictures per update, all processes together")
    parser.add_argument("--lr", type=float, default=0.1, help="at the start; it falls to 0 along a cosine")  # NEW
    parser.add_argument("--dropout", type=float, default=0.1, help="part of the last activations set to 0")  # NEW
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64", "bfloat16", "float16"],
        default="float32",
        help="16 bits: autocast",  # NEW
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--save", type=Path, help="write the final weights to this file")
    parser.add_argument("--accumulate", type=int, default=1, help="backward passes per update, in each process")
    parser.add_argument("--timeout", type=int, default=300, help="seconds to wait for another process")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the checkpoints, to go on from")  # NEW
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps from one to the next")  # NEW
    parser.add_argument("--metrics", type=Path, help="write one line of JSON per epoch to this file")
    return parser.parse_args()


def load(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features (N, 1, H, W) and labels (N,) to train on, and the same to validate on."""
    if arguments.dataset == "synthetic":  # pictures of 8 x 8 that a linear teacher has labeled
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(6000, 1, 8, 8, generator=generator)
        labels = (features.flatten(1) @ torch.randn(64, 10, generator=generator)).argmax(1)
        parts = [(features[:5000], labels[:5000]), (features[5000:], labels[5000:])]
    else:
        import torchvision  # slow to import, and synthetic pictures do without

        family = {"mnist": torchvision.datasets.MNIST, "fashion-mnist": torchvision.datasets.FashionMNIST}
        mean, std = STATISTICS[arguments.dataset]
        parts = []
        for train in (True, False):
            try:
                pictures = family[arguments.dataset](str(arguments.data), train=train)
            except RuntimeError:
                raise SystemExit(
                    f"{arguments.dataset} is not in the folder `{arguments.data}`; fetch it with `python -m course data`, "
                    "name its folder with --data, or use --dataset synthetic"
                ) from None
            parts.append((pictures.data.unsqueeze(1).float().div(255).sub(mean).div(std), pictures.targets))
    (features, labels), (fresh, truth) = parts
    kind = torch.float64 if arguments.dtype == "float64" else torch.float32
    limit, check = arguments.limit, arguments.limit_validation
    if len(labels[:limit]) < arguments.batch_size:
        raise SystemExit(
            f"{len(labels[:limit])} pictures do not fill one batch of {arguments.batch_size} (--batch-size)"
        )
    return features[:limit].to(kind), labels[:limit], fresh[:check].to(kind), truth[:check]


def make_model(arguments: argparse.Namespace, features: Tensor) -> nn.Module:
    """Return a network for pictures like `features`, with weights that depend on the seed alone."""
    torch.manual_seed(arguments.seed)
    side = features.shape[-1]
    if arguments.model == "mlp":
        model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 128), nn.ReLU())  # NEW
        model += nn.Sequential(nn.Dropout(arguments.dropout), nn.Linear(128, 10))  # NEW
    else:
        model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(arguments.dropout), nn.Linear(32 * (side // 4) ** 2, 10)),  # NEW
        )
    return model.to(features.dtype)


# what one process finds out, and all of them have to agree on
def stop_if_ranks_disagree(what: str, *tensors: Tensor) -> str:  # NEW
    """End all processes if these tensors are not the same in each of them; return their digest.

    Each would train on its own data, the gradients would be averaged all the same, and nobody would notice.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    everybody: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(everybody, digest.hexdigest())
    if len(set(everybody)) > 1:
        odd = [rank for rank, each in enumerate(everybody) if each != everybody[0]]
        raise SystemExit(
            f"rank {dist.get_rank()}: ranks {odd} have other {what} than rank 0; give all of them the same files"
        )
    return digest.hexdigest()  # NEW


@torch.inference_mode()
def count_correct(model: nn.Module, features: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return (how many are right, how many there are)."""
    model.eval()
    correct = 0
    for x, y in zip(features.split(1000), labels.split(1000), strict=True):
        correct += int((model(x).argmax(1) == y).sum())
    return correct, len(labels)


# the sums of all processes
def count_everywhere(model: nn.Module, features: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return (how many are right, how many there are), each process judging its own share.

    The shares are not padded, so nobody is counted twice. Counts can be added; averages of unequal shares could not.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    correct, total = count_correct(model, features[rank::world_size], labels[rank::world_size])
    sums = torch.tensor([correct, total], device=features.device)
    dist.all_reduce(sums)
    return int(sums[0]), int(sums[1])


# NEW: a process without its agent would go on in the background, beside the run that replaces it
def end_with_the_agent() -> None:
    """End this process when torchrun, which started it, is gone."""

    def watch() -> None:
        while os.getppid() == AGENT:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# NEW: two runs in one folder would overwrite each other's checkpoints
def lock(folder: Path, patience: float = 15) -> None:
    """Keep other runs out of the folder until this process ends, however it ends."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + patience  # seconds; processes of a run that was killed take a moment to end
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SystemExit(f"another run is at work in `{folder}`; give this one another --run-dir") from None
            time.sleep(0.1)


# NEW: whoever reads the file finds the old content or the new one, never a part, whatever happens when
def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name, force it to the disk, then give it its name in one step.

    A file that holds this content already is left alone.
    """
    if path.is_file() and path.read_bytes() == content:
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    force_to_disk(path.parent)


# NEW
def force_to_disk(folder: Path) -> None:
    """Make the names in a folder survive a power cut, as fsync does for what a file holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


# NEW
def checksums(folder: Path) -> dict[str, str]:
    """Return SHA-256 by name of all files of a checkpoint but its manifest."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# NEW: all processes take part
def save_checkpoint(run: Path, step: int, tensors: dict[str, Any], notes: dict[str, Any]) -> None:
    """Write tensors and notes (JSON) of this step; the folder has its name only when all of it is on the disk."""
    whole = run / f"step-{step:08d}"
    partial = whole.with_name(whole.name + ".partial")
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(partial, sync_files=True))  # returns when all have written
    if dist.get_rank() == 0:
        manifest = json.dumps({"files": checksums(partial), "step": step, **notes})
        write_atomically(partial / "manifest.json", manifest.encode())
        os.rename(partial, whole)
        force_to_disk(run)
        for old in sorted(run.glob("step-????????"))[:-2]:
            shutil.rmtree(old.rename(old.with_name(old.name + ".partial")))


# NEW: by rank 0, before anybody reads
def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint whose files are what its manifest says; put damaged ones aside, saying so.

    Raises SystemExit with one line if there are checkpoints and none of them can be used.
    """
    for rest in run.glob("*.partial"):  # what a killed run was writing
        shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
    found = sorted(run.glob("step-????????"), reverse=True)
    for checkpoint in found:
        try:
            manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
            files, recipe = dict(manifest["files"]), manifest["recipe"]
        except (OSError, ValueError, KeyError, TypeError):
            reason = "it has no manifest of this program"
        else:
            present = checksums(checkpoint)
            odd = [name for name in {**files, **present} if files.get(name) != present.get(name)]
            if recipe and not odd:
                return checkpoint
            reason = f"`{', '.join(sorted(odd))}` is not what its manifest says: truncated, changed or foreign"
        print(f"checkpoint `{checkpoint}` is not used: {reason}", flush=True)
        aside = checkpoint.with_name(checkpoint.name + ".refused")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
    if found or any(run.glob("step-????????.refused")):  # nor may a restart, which finds them put aside, begin anew
        raise SystemExit(f"no checkpoint in `{run}` can be used; start again with another --run-dir")
    return None


def main() -> None:
    """Train, and say after each epoch how well."""
    arguments = read_arguments()
    # torchrun tells each process who it is
    if "RANK" not in os.environ:
        raise SystemExit(
            "this program runs in several processes; start it with "
            "`torchrun --standalone --nproc-per-node 2 scripts/train_elastic.py --run-dir runs/first`"  # NEW
        )
    end_with_the_agent()  # NEW
    # NEW: by default processes find each other through a store in the agent, and after a restart some of them meet the
    # NEW: store of the life before and wait for the dead
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if restarts > 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        reason = "restarts can hang like this: `export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` before you call torchrun"
        raise SystemExit(reason if os.environ["RANK"] == "0" else 1)

    global_rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    micro_batch, remainder = divmod(arguments.batch_size, world_size * arguments.accumulate)
    if remainder:
        reason = (
            f"--batch-size {arguments.batch_size} cannot be shared out evenly: make it a multiple of "
            f"{world_size} processes x {arguments.accumulate} (--accumulate)"
        )
        raise SystemExit(reason if global_rank == 0 else 1)

    if arguments.checkpoint_every < 1:  # NEW
        raise SystemExit("--checkpoint-every has to be 1 or more")  # NEW
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda, but torch finds no GPU here; leave --device out")
    has_gpu = torch.cuda.is_available() and arguments.device != "cpu"
    # one GPU each: the local rank counts within a machine, the global rank over all of them
    if has_gpu and torch.cuda.device_count() < local_world_size:
        raise SystemExit(
            f"{local_world_size} processes on this machine and {torch.cuda.device_count()} GPUs; "
            "start fewer processes, or use --device cpu"
        )
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if has_gpu else "gloo", timeout=timedelta(seconds=arguments.timeout))

    features, labels, fresh, truth = (t.to(device) for t in load(arguments))
    data = stop_if_ranks_disagree("data", features, labels, fresh, truth)  # NEW
    model = make_model(arguments, features).to(device)
    # every process starts from the weights of rank 0
    replica = DistributedDataParallel(model, device_ids=[local_rank] if has_gpu else None)

    # NEW: after its first backward DDP groups the gradients anew, in the order they came in. Sums in other groups round
    # NEW: otherwise (from three processes on), so it happens here, before the first step of any life, in a backward that
    # NEW: does not count.
    replica(features[:1]).sum().backward()
    model.zero_grad()

    # the places of this process, every world_size-th of the epoch's order
    everything = TensorDataset(features, labels)
    sampler: DistributedSampler = DistributedSampler(
        everything, world_size, global_rank, seed=arguments.seed, drop_last=True
    )

    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9)
    # NEW: every one of these has a state that a checkpoint has to hold
    steps_per_epoch = len(labels) // arguments.batch_size
    total_steps = steps_per_epoch * arguments.epochs
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(total_steps, 1))
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(arguments.dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    torch.manual_seed(1000 * arguments.seed + global_rank)  # the same weights, but each process its own dropout
    step: int = 0
    history: list[dict[str, float]] = []
    loss_sum, seen = torch.zeros((), dtype=torch.float64, device=device), 0

    # NEW: what the final weights depend on: the recipe has to be the same, and these should be
    recipe = {**{name: getattr(arguments, name) for name in RECIPE}, "data": data}
    circumstances = {
        **{"processes": world_size, "accumulate": arguments.accumulate},
        **{"device": device.type, "torch": torch.__version__},
    }

    # NEW: torch.distributed.checkpoint writes a tensor that all ranks share once, and what has a rank's name for each
    def tensors_now() -> dict[str, Any]:
        weights, moments = dcp_state.get_state_dict(model, optimizer)
        mine = {"sums": torch.tensor([float(loss_sum), seen], dtype=torch.float64), "random": torch.get_rng_state()}
        if has_gpu:
            mine["random_gpu"] = torch.cuda.get_rng_state(device)
        return {"model": weights, "optimizer": moments, "ranks": {str(global_rank): mine}}

    # NEW: what is no tensor goes into the manifest
    def save() -> None:
        states = {"scheduler": scheduler.state_dict(), "scaler": scaler.state_dict(), "history": history}
        save_checkpoint(
            arguments.run_dir, step, tensors_now(), {"recipe": recipe, "circumstances": circumstances, **states}
        )

    # NEW: all epochs each time, so that a restart repeats none
    def write_metrics() -> None:
        if arguments.metrics and global_rank == 0:
            write_atomically(arguments.metrics, "".join(json.dumps(each) + "\n" for each in history).encode())

    # NEW: rank 0 chooses, all go on from the same checkpoint
    chosen: list[Any] = [None, None]
    if global_rank == 0:
        arguments.run_dir.mkdir(parents=True, exist_ok=True)
        # A file system of many machines lets go of the lock of a lost one only after a while.
        lock(arguments.run_dir, patience=15 if world_size == local_world_size else 120)
        checkpoint = newest_checkpoint(arguments.run_dir)
        if checkpoint:
            chosen = [checkpoint, json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))]
    dist.broadcast_object_list(chosen)
    checkpoint, manifest = chosen

    # NEW: go on where it was
    if checkpoint:
        differing = [name for name, value in recipe.items() if manifest["recipe"].get(name) != value]
        if differing:
            details = ", ".join(f"{name} {manifest['recipe'].get(name)}, now {recipe[name]}" for name in differing)
            reason = f"`{arguments.run_dir}` holds another run: {details}; give this one another --run-dir"
            raise SystemExit(reason if global_rank == 0 else 1)
        before = manifest["circumstances"]
        same_shape = before["processes"] == world_size and before["device"] == device.type
        state = tensors_now()
        if not same_shape:  # sums of everybody, nobody's random numbers
            state["ranks"] = {
                str(rank): {"sums": torch.zeros(2, dtype=torch.float64)} for rank in range(before["processes"])
            }
        dcp.load(state, storage_reader=dcp.FileSystemReader(checkpoint))  # into the tensors that are there
        dcp_state.set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        scheduler.load_state_dict(manifest["scheduler"])
        scaler.load_state_dict(manifest["scaler"])
        step, history = manifest["step"], manifest["history"]
        if same_shape:
            sums = state["ranks"][str(global_rank)]["sums"]
            torch.set_rng_state(state["ranks"][str(global_rank)]["random"])
            if has_gpu:
                torch.cuda.set_rng_state(state["ranks"][str(global_rank)]["random_gpu"], device)
        else:
            torch.manual_seed(1000 * (arguments.seed + step) + global_rank)
            sums = sum(each["sums"] for each in state["ranks"].values()) * (global_rank == 0)
        loss_sum, seen = sums[0].to(device), int(sums[1])
        if global_rank == 0:
            print(f"goes on from step {step} of {total_steps} (`{checkpoint}`)", flush=True)
            changes = [
                f"{name} {before[name]}, now {value}" for name, value in circumstances.items() if before[name] != value
            ]
            if changes:
                print(
                    f"{'; '.join(changes)}: the same batches in the same order, but other roundings and other dropout; "
                    "from here on the weights are no longer bit for bit those of an undisturbed run",
                    flush=True,
                )
    finished = checkpoint is not None and step == total_steps
    if finished and global_rank == 0:
        print("this run is finished: nothing to do", flush=True)

    for epoch in range(step // max(steps_per_epoch, 1), arguments.epochs):  # NEW
        started = time.perf_counter()
        sampler.set_epoch(epoch)  # without it every epoch has the same order
        order = torch.tensor(list(sampler))
        share = arguments.batch_size // world_size
        model.train()
        # A last, smaller batch is left out, so that every update averages over the same number of pictures.
        batches = order[: len(labels) // arguments.batch_size * share].split(share)  # NEW
        for batch in batches[step - epoch * steps_per_epoch :]:  # NEW: those of this epoch that are not done yet
            optimizer.zero_grad()
            for i, places in enumerate(batch.split(micro_batch)):
                x, y = features[places], labels[places]
                # Gradients travel with the last backward of an update only; the ones before it add up at home.
                last = i + 1 == arguments.accumulate
                with contextlib.nullcontext() if last else replica.no_sync():
                    with torch.autocast(device.type, dtype=half, enabled=half is not None):  # NEW
                        logits = replica(x)
                    loss = F.cross_entropy(logits if arguments.dtype == "float64" else logits.float(), y)
                    scaler.scale(loss / arguments.accumulate).backward()  # NEW
                loss_sum += loss.detach() * len(y)
                seen += len(y)
            scaler.step(optimizer)  # NEW
            scaler.update()  # NEW
            scheduler.step()  # NEW
            step += 1  # NEW
            if step % arguments.checkpoint_every == 0 and step % steps_per_epoch:  # NEW
                save()  # NEW
        correct, total = count_everywhere(model, fresh, truth)
        examples = torch.tensor(seen, device=device)
        dist.all_reduce(loss_sum)
        dist.all_reduce(examples)
        seconds = time.perf_counter() - started
        loss_mean = float(loss_sum) / max(int(examples), 1)
        loss_sum, seen = torch.zeros((), dtype=torch.float64, device=device), 0  # NEW
        record = {"epoch": epoch + 1, "loss": loss_mean, "correct": correct, "total": total, "seconds": seconds}
        history.append(record)  # NEW
        if step % arguments.checkpoint_every == 0 or step == total_steps:  # NEW
            save()  # NEW
        if global_rank != 0:  # everybody has computed it, one says it
            continue
        print(f"epoch {epoch + 1}  loss {loss_mean:.4f}  correct {correct} of {total}  {seconds:.1f} s", flush=True)
        write_metrics()  # NEW

    write_metrics()  # NEW: again, for a process that was killed between its last checkpoint and this
    if arguments.save and global_rank == 0:
        content = io.BytesIO()  # NEW
        torch.save(model.state_dict(), content)  # NEW
        write_atomically(arguments.save, content.getvalue())  # NEW
    # DDP holds on to the group. It goes first, or else the group ends with this function, which waits for the group's
    # threads, and these may wait for Python's lock, which the function holds.
    del replica
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
