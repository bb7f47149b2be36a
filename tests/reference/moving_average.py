#!/usr/bin/env python3
"""The reference values of the example `quant_strategy`, from the bars alone.

Usage: moving_average.py stocks.csv

Price: adjusted close. When the 20-bar average crosses the 60-bar one at a bar's close, the NEXT bar buys with all money
(or sells all), at its adjusted close, for 0.1 % of the money moved. Volatility: sample deviation of daily log returns,
times the root of 252, by the year of the later bar.
"""

import csv
import json
import math
import statistics
import sys
from collections import defaultdict

FAST, SLOW, COST = 20, 60, 0.001


def strategy(bars):
    closes = [price for _, price in bars]
    cash, shares, order, above = 1.0, 0.0, None, None
    trades, peak, drawdown, signal = 0, 1.0, 0.0, None
    for today, price in enumerate(closes):
        if order == "buy":
            cash, shares = 0.0, cash * (1 - COST) / price
        elif order == "sell":
            cash, shares, trades = shares * price * (1 - COST), 0.0, trades + 1
        order = None
        worth = cash + shares * price
        peak = max(peak, worth)
        drawdown = max(drawdown, 1 - worth / peak)
        if today + 1 < SLOW:
            continue
        was, above = above, mean(closes, today, FAST) > mean(closes, today, SLOW)
        if was is not None and was != above:
            signal = {"action": "buy" if above else "sell", "date": bars[today][0], "price": price}
            order = "buy" if above else "sell" if shares else None
    return {
        "trades": trades,
        "open": shares > 0,
        "total_return": worth - 1,
        "buy_and_hold": closes[-1] * (1 - COST) / closes[0] - 1,
        "max_drawdown": drawdown,
        "signal": signal,
    }


def mean(closes, today, length):
    return math.fsum(closes[today + 1 - length : today + 1]) / length


def volatility(bars):
    returns = defaultdict(list)
    for (_, before), (date, price) in zip(bars, bars[1:]):
        returns[date[:4]].append(math.log(price / before))
    return {year: statistics.stdev(of_year) * math.sqrt(252) for year, of_year in returns.items()}


bars = defaultdict(list)
with open(sys.argv[1], newline="") as file:
    for row in csv.DictReader(file):
        bars[row["Ticker"]].append((row["Date"], float(row["Adj Close"])))
reference = {code: strategy(of_code) | {"volatility": volatility(of_code)} for code, of_code in bars.items()}
json.dump(reference, sys.stdout, indent=1)
