"""Wrong answers to the exercises of 03."""

WRONG = {
    1: [(None,), (27,), (11,), (5,), (21,)],
    2: [
        (lambda window, chunk: None,),
        (lambda window, chunk: window,),
        (lambda window, chunk: window + chunk,),
        (lambda window, chunk: window + chunk - 2,),
        (lambda window, chunk: 10,),
    ],
    3: [
        (lambda start, chunk, capacity: None, lambda start, window: None),
        (lambda start, chunk, capacity: start + chunk - 1, lambda start, window: start - window),
        (lambda start, chunk, capacity: start + chunk - capacity, lambda start, window: start - window),
        (lambda start, chunk, capacity: start + chunk - 1 - capacity, lambda start, window: start - window + 1),
        (lambda start, chunk, capacity: start + 1 - capacity, lambda start, window: start - window),
    ],
}
