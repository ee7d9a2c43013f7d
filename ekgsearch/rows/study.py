"""Row of the table of a study."""

from dataclasses import dataclass

from ekgsearch.rows.column import column


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One random sub-network of a study."""

    run: str = column("name of the run")
    index: int = column("number of the sub-network, from 0")
    criterion: str = column("which channels go first: random or l1")
    kept_macs: int = column("multiply-accumulates per image (job's counter)")
    macs_reduction: float = column("share of the multiply-accumulates removed, 0..1")
    validation_loss: float = column("cross-entropy on the search subset before fine-tuning, nats, batch statistics")
    eigenvalue_ratio: float = column("|lowest / highest eigenvalue| of the Hessian, mean along the gradient")
    relative_condition: float = column("|weights| |df/dt| / (|gradient| f), mean along the gradient")
    potential_loss: float = column("test loss after plain fine-tuning, nats per image, running statistics")
    final_top1: float = column("test accuracy after plain fine-tuning, percent, running statistics")
    test_images: int = column("test images that loss and accuracy are measured on; 0 in older tables", 0)
